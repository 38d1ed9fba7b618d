"""The public names of `nth`, each imported from the module that defines it.

`nth/__init__.py` imports this module when one of these names is first used. The order
is that of a computation: problem and network, kernels, dynamics, integration, solution.
"""

from ._problem.losses import (
    AbstractLoss as AbstractLoss,
    LogisticLoss as LogisticLoss,
    CustomLoss as CustomLoss,
    SoftmaxCrossEntropy as SoftmaxCrossEntropy,
    SquaredError as SquaredError,
)
from ._problem.problem import Problem as Problem
from ._network.activations import softplus as softplus
from ._network.mlp import MLP as MLP
from ._network.adapters import from_apply as from_apply
from ._kernels.kernels import Kernels as Kernels, kernels as kernels
from ._kernels.files import save_ntk as save_ntk
from ._kernels.contraction import contract as contract
from ._kernels.projection import Projection as Projection, project as project
from ._kernels.ntk_analysis import (
    Spectrum as Spectrum,
    layer_kernels as layer_kernels,
    nngp as nngp,
    spectrum as spectrum,
)
from ._dynamics.base import (
    AbstractDynamics as AbstractDynamics,
    AbstractKernelDynamics as AbstractKernelDynamics,
)
from ._dynamics.dense import DenseHierarchy as DenseHierarchy
from ._dynamics.truncation import AbstractTruncation as AbstractTruncation
from ._dynamics.matrix_free import MatrixFreeHierarchy as MatrixFreeHierarchy
from . import plot as plot
from ._solution.prediction import AbstractPrediction as AbstractPrediction
from ._solution.results import RESULTS as RESULTS
from ._solution.solution import Solution as Solution
from ._analytic.closed_form import (
    Trajectory as Trajectory,
    closed_form as closed_form,
    displacement as displacement,
)
from ._analytic.perturbative import (
    Perturbation as Perturbation,
    perturbative as perturbative,
)
from . import infinite as infinite
from ._dynamics.gradient_flow import GradientFlow as GradientFlow
from ._dynamics.taylorized import TaylorizedFlow as TaylorizedFlow
from ._internal.warnings import (
    AccuracyWarning as AccuracyWarning,
    WindowWarning as WindowWarning,
)
from ._integrate.solvers.chebyshev import ROCK4 as ROCK4
from ._integrate.solvers.exponential import DenseExponential as DenseExponential
from ._integrate.solvers.low_rank_rosenbrock import (
    LowRankRosenbrock as LowRankRosenbrock,
)
from ._integrate.solvers.rosenbrock import DenseRosenbrock as DenseRosenbrock
from ._integrate.integrate import integrate as integrate
from ._integrate.kernel_trajectory import (
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
from ._discrete.max_learning_rate import max_learning_rate as max_learning_rate
from ._discrete.solve import (
    solve_discrete as solve_discrete,
    train as train,
)
from ._discrete.step_kernels import (
    StepKernels as StepKernels,
    step_kernels as step_kernels,
)
from ._discrete.taylorized import train_taylorized as train_taylorized
from ._discrete.along import (
    SharpnessPath as SharpnessPath,
    kernel_along_steps as kernel_along_steps,
    sharpness_along as sharpness_along,
)
from ._discrete.catapult import Catapult as Catapult, catapult as catapult
from ._compare.comparison import Comparison as Comparison
from ._compare.compare import compare as compare
from ._compare.compare_discrete import compare_discrete as compare_discrete
from . import scaling as scaling
from . import testing as testing
