"""The style of every figure: colors and fonts, for figures of your own as well.

Most figures are drawn by the `plot` methods of results, such as
[`nth.Solution.plot`][]; here are those that need more than one result.
"""

from ._animation import animate_kernel as animate_kernel
from ._regions import decision_regions as decision_regions
from ._style import level_color as level_color, style as style
