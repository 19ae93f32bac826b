"""What was asked and answered: a sample of a service's images, as Parquet files in the store that it serves.

An answer becomes rows (`recorder`), which wait in memory and are written in the background (`writer`), in one layout
(`rows`); `condu drift` reads them. A log that can't be written costs rows, never a request.
"""
