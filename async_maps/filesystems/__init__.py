"""Disks and S3 to read, list and delete; addresses and locators."""
