"""The conformance kit: does a gateway hand to trainers exactly what its workers sampled?"""
