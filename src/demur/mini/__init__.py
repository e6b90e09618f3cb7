"""The miniature world and mini-LRM: the default, small enough to train on a laptop; a plug-in like any other."""
