"""Diagnostics of a trained world model: what it predicts, and how far its predictions can be trusted.

The functions take a model and a batch (B, T) of recorded windows. They return tensors that stay on their device. Only
the verdicts read their values.

============= ========================================================================================
module        question
============= ========================================================================================
`open_loop`   How far ahead does the model predict?
`baselines`   Does it predict better than methods that need no model?
`scores`      How good is a forecast, and do its intervals have the coverage that they claim?
`collapse`    Does the model use its latent variable, and what is missing in it?
`actions`     Does the model use the actions, at the right time step?
`probe`       Which quantities can a linear map read from the latent state?
`evidence`    What does an inexact posterior cost, and which of two models explains the data better?
============= ========================================================================================
"""
