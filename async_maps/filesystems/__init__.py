"""Reading, listing and deleting files on disks and in buckets; addresses and locators."""
