"""Where and when a job runs on rented GPUs: spot, on demand or not now; which offer, at which bid; how often it saves.

Pure: facts, time and what was measured come in, a decision with its reason goes out. Nothing here names a provider's
zone, a date or a machine: what differs between pools is learned while watching them.
"""
