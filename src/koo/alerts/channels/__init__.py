"""The ways by which a person is told of an alert, one file each."""
