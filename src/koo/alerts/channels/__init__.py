"""The ways by which a person is notified of an alert, one file each."""
