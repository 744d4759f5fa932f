"""What a report says: of a cache from a sample of it, of students from what stands in their folders. And its page.

May import everything of `schemas` but `cli`; needs neither torch nor a teacher. `plots` draws with Altair, which the
extra [report] brings; nothing outside this room and its verb imports it. A fact that is shown goes beside
`cache_facts.py` or `runs.py`, a plot into `plots`.
"""
