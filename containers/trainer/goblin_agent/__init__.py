"""The agent on a rented instance: it runs one attempt of a job, with one token and signed URLs."""
