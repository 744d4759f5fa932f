"""The plots of a report, a file each: from facts to Vega-Lite, by Altair.

`plot.py` says what a plot is, `plots.py` lists them. Imports `reports` above it, and Altair; a new plot is a file here
and a line in the list.
"""
