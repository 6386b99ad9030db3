"""Services that the platform offers to the application's code."""
