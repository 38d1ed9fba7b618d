"""Models of training in continuous time: an initial state and a vector field.

`dense` and `matrix_free` are the truncated hierarchy (Huang & Yau, eqs. 15 and 22),
`gradient_flow` is the trained network (eq. 4), `taylorized` is an alternative model.
"""
