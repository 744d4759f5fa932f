"""The commands of this package: flags to values, values to calls, tables to people.

May import everything of `pipelines`. A verb's flags and its table goes here.
"""
