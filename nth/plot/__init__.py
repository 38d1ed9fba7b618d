"""The style of every figure: colors and fonts, for figures of your own as well.

Figures are drawn by the `plot` methods of results, such as [`nth.Solution.plot`][].
"""

from ._style import level_color as level_color, style as style
