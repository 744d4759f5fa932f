"""The commands `train` and `evaluate`.

May import everything of `trainer`. A flag that is no `TrainingArguments` goes here.
"""
