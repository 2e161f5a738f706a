"""Files: checked reading, atomic writing, and the cache. All other rooms read and write files through these modules."""
