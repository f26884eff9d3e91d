"""The prior store: what stage 1 writes once and stage 2 reads, a Zarr v3 group with proofs of completeness.

`schema` says which fields a row has, `layout` where they lie, `shardfile` what the bytes of a shard are,
`publish` how a file appears whole or not at all. `writer`, `reader`, `verify` and `find` are the four things
one does with it. Only numpy, google-crc32c and (for compressed fields) numcodecs are needed; nothing here
imports zarr or torch.
"""
