"""Vector databases: what an index holds, pushed into one, and searched there.

In: an index, and the database's own client. Out: a collection or table, and the same hits as the index gives.
"""
