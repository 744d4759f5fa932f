"""Sealed shards: bytes whose name vouches for them; read with every claim bounded before it is believed.

May import `rows`, `storage`. What a footer says, or how a shard is read or made from others goes here.
"""
