"""Public data sets: what there is, fetching it, checking it, dividing it by patient."""
