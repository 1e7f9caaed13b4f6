"""What every detector shares."""
