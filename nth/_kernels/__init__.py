"""The kernels K⁽ʳ⁾ at initialization (Huang & Yau, eqs. 7-10): K⁽ʳ⁺¹⁾ = D K⁽ʳ⁾.

`hierarchy_operator` is the operator D; `jacobian` and `mlp_kernels` are K⁽²⁾ to K⁽⁴⁾ in
closed form; `assembly` combines them. `contraction`, `projection` and `ntk_analysis`
are parts of kernels.
"""
