"""How good the answers are: rates of feedback, refusals and errors, and the scores of judges, with intervals."""
