"""Solutions in closed form for the squared error: level 2 (Lee et al. 2019), and the
O(1/width) correction to it (Dyer & Gur-Ari 2020)."""
