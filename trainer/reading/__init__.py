"""Texts of a cache as a student of another tokenizer reads them, and where its tokens meet the teacher's.

May import `schemas` alone. What a tokenizer does to characters and bytes goes here; tensors are `batches`' business.
"""
