"""What an update minimises and how: bounds, the objective, the learner and its optimizers."""
