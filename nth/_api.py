"""The public names of `nth`, each imported from the module that defines it.

`nth/__init__.py` imports this module when one of these names is first used. The order
is that of a computation: problem and network, kernels, dynamics, integration, solution.
"""

from ._loss import (
    AbstractLoss as AbstractLoss,
    LogisticLoss as LogisticLoss,
    Loss as Loss,
    SoftmaxCrossEntropy as SoftmaxCrossEntropy,
    SquaredError as SquaredError,
)
from ._problem import Problem as Problem
from ._activation import softplus as softplus
from ._mlp import MLP as MLP
from ._modules import from_apply as from_apply
from ._kernels import Kernels as Kernels, kernels as kernels
from ._contract import contract as contract
from ._project import Projection as Projection, project as project
from ._spectrum import (
    Spectrum as Spectrum,
    layer_kernels as layer_kernels,
    nngp as nngp,
    spectrum as spectrum,
)
from ._dynamics import (
    AbstractDynamics as AbstractDynamics,
    AbstractKernelDynamics as AbstractKernelDynamics,
)
from ._hierarchy import DenseHierarchy as DenseHierarchy
from ._matrix_free import MatrixFreeHierarchy as MatrixFreeHierarchy
from ._closed_form import (
    Trajectory as Trajectory,
    closed_form as closed_form,
    displacement as displacement,
)
from ._perturbative import Perturbation as Perturbation, perturbative as perturbative
from . import infinite as infinite
from ._flow import GradientFlow as GradientFlow
from ._taylorized import TaylorizedFlow as TaylorizedFlow
from ._errors import WindowWarning as WindowWarning
from ._solution import Solution as Solution
from ._integrate import integrate as integrate
from ._evolution import (
    KernelPath as KernelPath,
    SpectrumPath as SpectrumPath,
    kernel_along as kernel_along,
    spectrum_along as spectrum_along,
)
from . import theory as theory
from ._solve import (
    cheaper_method as cheaper_method,
    gradient_flow as gradient_flow,
    solve as solve,
)
from ._rule import GradientDescent as GradientDescent
from ._curvature import max_learning_rate as max_learning_rate
from ._discrete import (
    gradient_descent as gradient_descent,
    solve_discrete as solve_discrete,
)
from ._catapult import Catapult as Catapult, catapult as catapult
from ._comparison import Comparison as Comparison
from ._compare import compare as compare
from . import scaling as scaling
