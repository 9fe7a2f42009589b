"""The only files of MemKV that open devices and files of stored blocks."""
