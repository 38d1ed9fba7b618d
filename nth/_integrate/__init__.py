"""Integration of dynamics in time by diffrax, and the window of validity."""
