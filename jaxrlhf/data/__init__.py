"""Data: from rows in files to batches of numpy arrays.

The stages, in the order that a row passes through them: `files` reads it, `shapes` gives it standard columns, `rows`
checks it, `chat` turns it into token ids, `index` keeps what fits, `batches` shifts it and `loader` puts it in order.
"""
