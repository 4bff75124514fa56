"""Fine-tune robot policies and see at every checkpoint which skills they forgot."""
