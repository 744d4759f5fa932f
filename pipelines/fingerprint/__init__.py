"""Who the teacher is: the files and probes that decide what it says, and whether a cache is of the same one.

May import `teacher`. What makes two teachers different goes here.
"""
