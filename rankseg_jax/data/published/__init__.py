"""Published data sets, read from the folder of their official download or from TFDS records.

A data set is a TFDS builder in its own module. It says where the files of a split are (`find`)
and how to read one example (`read`). Training straight from the folder calls these two; preparing
writes what they return:

    config.data.dir = '/data/ADEChallengeData2016'    # the official folder; nothing is written
    config.data.dir = '/records'                      # after main.py --mode=prepare, or plain TFDS

Every example has 'image' (JPEG, as downloaded), 'labels' (uint16 [H, W] in 0..K-1, or IGNORED),
'file_name' and 'original_size' (rows, columns before any resizing). docs/datasets.md lists the
data sets.
"""

IGNORED = 65535  # in uint16 labels: ignored pixels
LISTED = 5  # items named in a message
