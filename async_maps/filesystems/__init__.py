"""Reading, listing and deleting files on disks and in S3; addresses and locators."""
