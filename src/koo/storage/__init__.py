"""What must outlive the process or be shared between processes: money, quotas, events, the fleet."""
