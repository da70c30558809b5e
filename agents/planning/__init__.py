"""Planning in imagination: random shooting, CEM, iCEM, MPPI."""
