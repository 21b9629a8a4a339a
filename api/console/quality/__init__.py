"""How good the answers are: feedback, refusals, scores of judges, comparisons of models, and labels of people."""
