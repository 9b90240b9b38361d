"""Tasks: models made of models, such as inverse solvers and editors, and a classifier that judges images."""
