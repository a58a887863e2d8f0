"""The command line: one file a verb, and no logic; all that a verb does can be done from Python."""
