"""How Beam runs here: its options, worker processes on one box, who takes which device.

May import `config`, `progress`. What an engine or a machine needs goes here.
"""
