"""Planning in imagination with random shooting, CEM, iCEM or MPPI."""
