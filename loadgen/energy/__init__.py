"""Reading joules: series of cumulative energy, and the meters that produce them."""
