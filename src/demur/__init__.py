"""demur: make reasoning models decline what they should, answer what they should, and prove it.

The data's path, and with it the tree of this package:

    prompts -> [attack] -> model -> Trace -> judge -> Verdict
                                      |-> diagnose -> Finding -> repair -> Trace
    Traces + maths + benign -> mix -> Examples -> train -> checkpoint -> bench -> Estimates -> report

`records` holds what travels, `interfaces` who acts on it. Importing this package imports neither torch nor a network client.
"""

__version__ = "0.1.0"
