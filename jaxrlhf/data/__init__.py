"""Data: from rows in files to batches of numpy arrays.

The stages, in the order that a row passes through them: `files` reads it, `shapes` gives it standard columns, `rows`
checks it, `chat` and `encoder` turn it into ids, `indexing` keeps what fits, `token_rows` shifts it, `batches` gives it
the form that a method reads, and `loader` puts it in order.
"""
