"""What a policy can do, and how far it moved from its base."""
