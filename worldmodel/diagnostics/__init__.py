"""What a model believes, and whether it should be believed.

Functions over a model and a batch (B, T) of recorded windows; results are tensors, and only verdicts read them.

============= ========================================================================================
module        question
============= ========================================================================================
`open_loop`   how far ahead does it foresee? (`baselines`: better than what needs no model?)
`scores`      how good is a forecast, and do its intervals hold what they promise?
`collapse`    is the latent variable used, and what does it leave out?
`actions`     does it use its actions, at the right time?
`probe`       what can be read off its latent state?
`evidence`    what does its posterior cost, and which of two models explains the data better?
============= ========================================================================================
"""
