"""Training in continuous time, as initial state and vector field.

`dense` and `matrix_free` are the truncated hierarchy (Huang & Yau, eqs. 15, 22),
`gradient_flow` is the trained network (eq. 4), `taylorized` another model.
"""
