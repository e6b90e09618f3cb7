"""The miniature world and mini-LRM: the default, small enough to train on a laptop. It plugs in by name, as any plug-in."""
