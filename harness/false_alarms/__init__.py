"""How often correct tiers fail and mutants pass, under conditions of the machine that are hostile to verdicts."""
