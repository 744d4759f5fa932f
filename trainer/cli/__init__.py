"""The commands `train`, `evaluate` and `sweep`.

May import everything of `trainer`. A flag that is no `TrainingArguments` goes here.
"""
